# The client's own libraries (grpclib, its blob functions) against the router, the server and the gateway. Needs no root.
add_executable(rpc_probe ${CMAKE_CURRENT_SOURCE_DIR}/rpc_probe.cc)
target_compile_options(rpc_probe PRIVATE -Wall -Wextra -Werror -Wno-missing-field-initializers)
target_link_libraries(rpc_probe PRIVATE lydian_gateway)
add_test(NAME rpc_client COMMAND python3 ${CMAKE_CURRENT_SOURCE_DIR}/rpc_client.py $<TARGET_FILE:rpc_probe> ${CMAKE_SOURCE_DIR}/.venv/bin/python)
set_tests_properties(rpc_client PROPERTIES LABELS integration TIMEOUT 120 SKIP_RETURN_CODE 77)

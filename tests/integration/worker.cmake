file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/worker_*.cc)
add_executable(worker_flow_test ${sources})
target_compile_options(worker_flow_test PRIVATE -Wall -Wextra -Werror -Wno-missing-field-initializers)
target_link_libraries(worker_flow_test PRIVATE lydian_worker lydian_runtime lydian_client_proto GTest::gtest GTest::gmock)
add_dependencies(worker_flow_test lydian-init)
target_compile_definitions(worker_flow_test PRIVATE
  LYDIAN_INIT="$<TARGET_FILE:lydian-init>"
  LYDIAN_SITE_PACKAGES_OF="${CMAKE_SOURCE_DIR}/.venv")
add_test(NAME worker_flow_test COMMAND worker_flow_test)
set_tests_properties(worker_flow_test PROPERTIES LABELS integration TIMEOUT 600 RUN_SERIAL TRUE)

lydian_integration_test(build_itest SOURCES ${CMAKE_CURRENT_LIST_DIR}/build_main.cc
  ${CMAKE_CURRENT_LIST_DIR}/build_test.cc ${CMAKE_CURRENT_LIST_DIR}/build_attacks_test.cc LIBS lydian_build lydian_worker)
add_dependencies(build_itest lydian-init lydian-stage)
target_compile_definitions(build_itest PRIVATE LYDIAN_INIT="$<TARGET_FILE:lydian-init>")
set_tests_properties(build_itest PROPERTIES TIMEOUT 1800)

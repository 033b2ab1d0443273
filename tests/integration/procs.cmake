lydian_integration_test(procs_itest SOURCES ${CMAKE_CURRENT_LIST_DIR}/procs_itest.cc LIBS lydian_bin)
lydian_integration_test(spawner_itest SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/spawner_itest.cc LIBS lydian_spawner GTest::gtest_main)
target_compile_definitions(spawner_itest PRIVATE LYDIAN_INIT_PATH="$<TARGET_FILE:lydian-init>")
add_dependencies(spawner_itest lydian-init)

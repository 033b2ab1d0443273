lydian_integration_test(procs_itest SOURCES ${CMAKE_CURRENT_LIST_DIR}/procs_itest.cc LIBS lydian_bin)

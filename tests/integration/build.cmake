lydian_integration_test(build_itest SOURCES build_test.cc LIBS lydian_build)
set_tests_properties(build_itest PROPERTIES TIMEOUT 1200)

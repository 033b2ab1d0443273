lydian_integration_test(engine_disk_test SOURCES engine_disk_test.cc LIBS lydian_control GTest::gtest_main)

# What this project can do; the work is in tools/. `make demo` and `make test` need root and a Debian 12 machine, nothing else.
.PHONY: help setup build demo demo-stop demo-clean test test-unit test-integration test-client test-fuzz fuzz fmt lint lint-all bench docs clean

help:
	@echo 'make demo              install what is needed, build, start Lydian, run examples/hello.py through the official client'
	@echo 'make demo-stop         stop it; make demo-clean removes its state, networks and cgroups too'
	@echo 'make test              everything that has a test (test-unit, test-integration, test-fuzz, test-client: one kind)'
	@echo 'make fuzz              fuzz what reads hostile bytes: 60 s of each target; SECONDS=600 TARGETS="http2 dns" for more of some'
	@echo 'make bench             measure against peers and floors: a table, and JSON in bench-results/'
	@echo 'make setup build       packages and .venv; the build alone'
	@echo 'make fmt lint docs     format; format, layers and clang-tidy on what changed (lint-all: everything); generated pages'

setup:
	@tools/setup.sh build run

build: setup
	@bash -c '. tools/common.sh && build'

demo:
	@tools/demo.sh up

demo-stop:
	@tools/demo.sh stop

demo-clean:
	@tools/demo.sh clean

test:
	@tools/test.sh

test-unit test-integration test-fuzz test-client: test-%:
	@tools/test.sh $*

fuzz:
	@tools/fuzz.sh $(or $(SECONDS),60) $(TARGETS)

fmt:
	@tools/lint.sh --fix

lint:
	@tools/lint.sh

lint-all:
	@tools/lint.sh --all

bench:
	@tools/bench.sh

docs:
	@tools/docs.sh

clean:
	rm -rf build build-* bench-results

#include "runtime_fixture.h"

# What the tests need, a part of ../Makefile: unit tests, CUDA's kernels on the host, a program whose GPU is emulated,
# fuzzers; and --verify's known answers.

GPU_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/test_cudnn*.c))
TOGETHER_TESTS := $(if $(DEBUG),,$(BUILD)/tests/unit/test_fused) # its fibers' stacks are too much for AddressSanitizer
TESTS := $(filter-out $(GPU_TESTS) %/test_fused,\
	$(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/test_*.c tests/unit/messages.c))) \
	$(TOGETHER_TESTS) $(if $(GPU),$(GPU_TESTS))

unit: $(TESTS) ## build the unit tests

print-unit-tests: # for tests/run
	@printf '%s\n' $(filter-out %/messages,$(TESTS))

$(TESTS): $(BUILD)/%: %.c $(PARTS)
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPP_FLAGS) -MMD -MP -Itests/unit $(C_FLAGS) -Wno-double-promotion $(LDFLAGS) -o $@ $< \
	  $(TEST_PARTS) $(PARTS) $(LIBS) -ldl -lcmocka $(TEST_LIBS)

$(BUILD)/tests/unit/test_golden: private TEST_LIBS = -rdynamic # for the GPU part

$(GPU_TESTS): $(GPU_OBJECTS)
$(GPU_TESTS): private CPP_FLAGS += $(GPU_CFLAGS)
$(GPU_TESTS): private TEST_PARTS = $(GPU_OBJECTS)
$(GPU_TESTS): private TEST_LIBS = $(GPU_LDFLAGS)

# The CUDA kernels run on the host: compiled as C++ with tests/support/shim in place of CUDA's runtime.
HOST_KERNELS := $(patsubst %,$(BUILD)/host/%.o,$(wildcard kernels/cuda/*.cu) tests/support/shim/cuda_host.cpp)
HOST_TESTS := $(filter $(BUILD)/tests/unit/test_cuda_%,$(TESTS))
HOST_CXX = $(patsubst clang%,clang++%,$(patsubst gcc%,g++%,$(CC)))
HOST_CXXFLAGS = -x c++ -std=c++17 -fno-exceptions -fno-rtti $(SPEED) -march=$(MARCH) -ffp-contract=fast \
	-Wall -Wextra -Wno-unknown-pragmas -Wno-pass-failed $(if $(WERROR),-Werror)

$(BUILD)/host/%.o: % $(BUILD)/toolchain | found
	@mkdir -p $(@D)
	$(call say,CXX) $(HOST_CXX) -Itests/support/shim -Iinclude -I. $(HOST_CXXFLAGS) -MMD -MP -c -o $@ $<

$(HOST_TESTS): $(HOST_KERNELS)
$(HOST_TESTS): private CPP_FLAGS += -Itests/support/shim
$(HOST_TESTS): private TEST_PARTS = $(HOST_KERNELS)

# A kernel whose blocks wait for each other, with tests/support/together in place of CUDA's runtime.
TOGETHER := $(patsubst %,$(BUILD)/together/%.o,$(wildcard kernels/fused/*.cu) tests/support/together/together.cpp)

$(BUILD)/together/%.o: % $(BUILD)/toolchain | found
	@mkdir -p $(@D)
	$(call say,CXX) $(HOST_CXX) -Itests/support/together -Itests/support/shim -Iinclude -I. $(HOST_CXXFLAGS) \
	  -ffp-contract=off -fPIC -MMD -MP -c -o $@ $<

$(TOGETHER_TESTS): $(TOGETHER)
$(TOGETHER_TESTS): private CPP_FLAGS += -Itests/support/shim
$(TOGETHER_TESTS): private TEST_PARTS = $(TOGETHER)
$(TOGETHER_TESTS): private TEST_LIBS = -lstdc++

# The same tests with the kernels on a GPU; only the huge tensors need the host.
DEVICE_TESTS := $(if $(GPU),$(patsubst $(BUILD)/tests/unit/%,$(BUILD)/tests/gpu/%,$(filter-out %_huge,$(HOST_TESTS)) \
	$(BUILD)/tests/unit/test_fused))
DEVICE_PARTS := $(GPU_KERNELS) tests/support/shim/cuda_device.c
device: $(DEVICE_TESTS) ## build the tests of the kernels for a GPU

$(DEVICE_TESTS): $(wildcard tests/unit/*.h tests/support/shim/*.h)
$(DEVICE_TESTS): $(BUILD)/tests/gpu/%: tests/unit/%.c $(PARTS) $(DEVICE_PARTS)
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPP_FLAGS) $(GPU_CFLAGS) -iquote tests/support/shim $(C_FLAGS) -Wno-double-promotion \
	  $(LDFLAGS) -o $@ $< $(DEVICE_PARTS) $(PARTS) $(LIBS) -ldl -lcmocka $(GPU_LDFLAGS)

EMULATED_BENCHES := $(foreach b,dropout step test_golden,$(BUILD)/emulated/$b $(BUILD)/emulated/$b-cuda.so)

# The program with a GPU part that computes on the host (tests/support/emulated/emulated.h), and an empty driver.
EMULATED := $(if $(DEBUG),,$(if $(GPU),$(addprefix $(BUILD)/emulated/,dtrain dtrain-cuda.so libcuda.so.1) \
	$(EMULATED_BENCHES)))
EMULATED_PARTS := $(filter-out $(BUILD)/src/cuda/cudnn_graph.o $(BUILD)/src/cuda/cudnn_conv.o,\
	$(GPU_SOURCES:%.c=$(BUILD)/%.o)) \
	$(patsubst %,$(BUILD)/emulated/%.o,$(wildcard kernels/cuda/*.cu) tests/support/shim/cuda_host.cpp) \
	$(TOGETHER) $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/emulated/*.c))
unit: $(EMULATED)
emulated: $(EMULATED) ## build a dtrain whose GPU is emulated, for the tests

$(BUILD)/emulated/dtrain: $(NAME)
	@mkdir -p $(@D)
	@cp $< $@

$(BUILD)/emulated/dropout $(BUILD)/emulated/step: $(BUILD)/emulated/%: $(BUILD)/bench/%
	@mkdir -p $(@D)
	@cp $< $@

$(BUILD)/emulated/test_golden: $(BUILD)/tests/unit/test_golden # by every engine
	@mkdir -p $(@D)
	@cp $< $@

$(filter %.so,$(EMULATED_BENCHES)): $(BUILD)/emulated/dtrain-cuda.so
	@ln -sf dtrain-cuda.so $@

$(BUILD)/emulated/libcuda.so.1:
	@mkdir -p $(@D)
	@$(CC) -shared -o $@ -x c /dev/null

$(BUILD)/emulated/dtrain-cuda.so: $(EMULATED_PARTS)
	$(call say,LD) $(CC) $(C_FLAGS) $(LDFLAGS) -shared -o $@ $^ -lstdc++

$(BUILD)/tests/support/emulated/%.o: CPP_FLAGS += $(GPU_CFLAGS)

$(BUILD)/emulated/%.o: % $(BUILD)/toolchain | found
	@mkdir -p $(@D)
	$(call say,CXX) $(HOST_CXX) -Itests/support/emulated -Itests/support/shim -Iinclude -I. $(HOST_CXXFLAGS) -fPIC \
	  -MMD -MP -c -o $@ $<

# What --verify compares with: src/verify/known.c, from kernels/definition.
unit: $(if $(DEBUG),,$(BUILD)/tests/support/make_known) # so that it stays fit for use
known: $(BUILD)/tests/support/make_known ## compute --verify's known answers anew
	$< > src/verify/known.c.tmp && mv src/verify/known.c.tmp src/verify/known.c

$(BUILD)/tests/support/make_known: tests/support/make_known.c $(filter-out $(BUILD)/src/verify/%,$(PARTS)) \
	$(BUILD)/src/verify/lesson.o
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPP_FLAGS) $(C_FLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LIBS) -ldl

# Fuzzers of what reads files and options. Sanitized throughout, so the sources are compiled anew, once for all of them.
FUZZED := $(wildcard src/base/*.c src/files/*.c src/data/*.c src/model/*.c) src/program/options.c src/program/trials.c
FUZZERS := $(patsubst tests/unit/fuzz/%.c,build/fuzz/%,$(wildcard tests/unit/fuzz/*.c))
fuzz: $(FUZZERS) ## build the fuzzers; tests/exec tests/unit/fuzz.py SECONDS runs them

FUZZED_OBJECTS := $(FUZZED:%.c=build/fuzz/objects/%.o)
FUZZ_CC = clang $(CPP_FLAGS) -DDTRAIN_REVISION='"fuzz"' -DDTRAIN_BUILD='"clang"' -std=c11 -O1 -g $(WARNINGS) \
	-Wno-double-promotion -fsanitize=fuzzer$(1)$(comma)address$(comma)undefined -fno-sanitize-recover=undefined

$(FUZZED_OBJECTS): build/fuzz/objects/%.o: %.c $(BUILD)/toolchain
	@mkdir -p $(@D)
	$(call say,FUZZ) $(call FUZZ_CC,-no-link) -MMD -MP -c -o $@ $<

$(FUZZERS): build/fuzz/%: tests/unit/fuzz/%.c tests/unit/fuzz/fuzz.h $(FUZZED_OBJECTS)
	$(call say,FUZZ) $(call FUZZ_CC) -o $@ $< $(FUZZED_OBJECTS) $(LIBS)

.PHONY: unit print-unit-tests device emulated known fuzz
-include $(FUZZED_OBJECTS:.o=.d) $(TESTS:=.d) $(HOST_KERNELS:.o=.d) $(TOGETHER:.o=.d) $(EMULATED_PARTS:.o=.d)

# The benchmarks, a part of ../Makefile.

BENCHES := $(patsubst %.c,$(BUILD)/%,$(wildcard bench/*.c))
BENCH_GPU_PARTS := $(if $(GPU),$(BENCHES:%=%-cuda.so)) # each finds the GPU part under its own name
GPU_BENCHES := $(if $(GPU),$(patsubst %.c,$(BUILD)/%,$(wildcard bench/cuda/*.c)))

bench: $(BENCHES) $(BENCH_GPU_PARTS) $(GPU_BENCHES) ## build the benchmarks in build/.../bench

$(BENCHES): $(BUILD)/%: %.c $(PARTS)
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPP_FLAGS) -MMD -MP $(C_FLAGS) $(LDFLAGS) -rdynamic -o $@ $< $(PARTS) $(LIBS) -ldl

$(BENCH_GPU_PARTS): $(BUILD)/$(NAME)-cuda.so
	@ln -sf ../$(NAME)-cuda.so $@

$(GPU_BENCHES): $(BUILD)/%: %.c $(PARTS) $(GPU_OBJECTS)
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPP_FLAGS) $(GPU_CFLAGS) -MMD -MP $(C_FLAGS) $(LDFLAGS) -o $@ $< $(GPU_OBJECTS) $(PARTS) \
	  $(LIBS) -ldl $(GPU_LDFLAGS)

# For every_benchmark.py.
$(BUILD)/emulated/%_rank: bench/cuda/%_rank.c $(wildcard bench/*.h) $(PARTS) $(EMULATED_PARTS)
	$(call say,CC) $(CC) $(CPP_FLAGS) $(GPU_CFLAGS) $(C_FLAGS) $(LDFLAGS) -o $@ $< $(EMULATED_PARTS) $(PARTS) $(LIBS) \
	  -ldl -lstdc++

.PHONY: bench
-include $(BENCHES:=.d) $(GPU_BENCHES:=.d)

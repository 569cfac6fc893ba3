# dtrain - `make` builds ./dtrain, `make help` lists the rest.
#
#   CC=gcc|clang   MARCH=native|x86-64-v3|...   MPICC=mpicc   CUDA=0   SM="80 90"   DEBUG=1   WERROR=1   V=1

# These come by the command line alone: in an environment they are somebody else's, as DEBUG=app:*. 0 means no.
CC = gcc
DEBUG =
WERROR =
V =
override DEBUG := $(filter-out 0,$(DEBUG))
override WERROR := $(filter-out 0,$(WERROR))
override V := $(filter-out 0,$(V))
# And these by either.
MPICC ?= mpicc
MARCH ?= native
CUDA ?= auto

# --- probes: what this machine has -----------------------------------------------------------------

comma := ,
probe = $(shell exec 2>/dev/null; $(1))

# MPI. Open MPI's mpicc tells its flags by -showme; those of MPICH and of what descends from it, Intel's too, by -show,
# as a whole command; where there is no mpicc, and none was named, pkg-config may know them. The header tells which MPI.
MPI_CFLAGS := $(call probe,$(MPICC) -showme:compile)
MPI_LIBS := $(call probe,$(MPICC) -showme:link)
ifeq ($(MPI_LIBS),)
MPI_PC := $(if $(filter file,$(origin MPICC)),$(firstword $(foreach \
	p,mpi-c ompi-c ompi mpich impi,$(call probe,pkg-config --exists $p && echo $p))))
MPI_SHOWN := $(or $(call probe,$(MPICC) -show),$(call probe,$(MPICC) -compile_info),$(if $(MPI_PC),$(call \
	probe,echo cc `pkg-config --cflags --libs $(MPI_PC)`)))
MPI_SHOWN := $(filter-out -c -g -O%,$(wordlist 2,$(words $(MPI_SHOWN)),$(MPI_SHOWN)))
MPI_CFLAGS := $(filter -I% -D% -m% -pthread,$(MPI_SHOWN))
MPI_LIBS := $(filter-out -I% -D%,$(MPI_SHOWN))
endif
MPI_MACROS := $(call probe,$(CC) $(MPI_CFLAGS) -include mpi.h -dM -E -x c /dev/null | sed -n 's/"//g; \
	s/^.define \(\(OMPI\|MPI\|I_MPI\|MPICH\|MVAPICH2*\)_\([A-Z]*VERSION\|[A-Z]*_VERSION\)\) /\1=/p')
mpi_macro = $(patsubst $(1)=%,%,$(filter $(1)=%,$(MPI_MACROS)))
mpi_named = $(if $(call mpi_macro,$(2)),$(1) $(call mpi_macro,$(2))$(if $(3),.$(call mpi_macro,$(3)))$(if \
	$(4),.$(call mpi_macro,$(4))))
MPI_VERSION := $(or $(call mpi_named,Open MPI,OMPI_MAJOR_VERSION,OMPI_MINOR_VERSION,OMPI_RELEASE_VERSION),$(call \
	mpi_named,Intel MPI,I_MPI_VERSION),$(call mpi_named,MVAPICH,MVAPICH_VERSION),$(call \
	mpi_named,MVAPICH,MVAPICH2_VERSION),$(call mpi_named,MPICH,MPICH_VERSION),$(call \
	mpi_named,MPI,MPI_VERSION,MPI_SUBVERSION))
CC_MISSING := $(if $(call probe,command -v $(firstword $(CC))),,no $(firstword $(CC)) here: name another by CC=)
MPI_MISSING := $(if $(MPI_VERSION),,$(if $(call probe,command -v $(MPICC)),$(MPICC) tells nothing that leads to mpi.h: \
	name another by MPICC=,no $(MPICC) on the PATH: load its module$(comma) or apt-get install libopenmpi-dev openmpi-bin))

CJSON_VERSION := $(call probe,pkg-config --modversion libcjson)
XXHASH_VERSION := $(call probe,pkg-config --modversion libxxhash)
CMOCKA_VERSION := $(call probe,pkg-config --modversion cmocka)
PC_CFLAGS := $(call probe,pkg-config --cflags libcjson libxxhash)
# Where a module or Spack has put them the program finds them by itself later.
PC_LIBS := $(call probe,pkg-config --libs libcjson libxxhash)
LIBS := $(MPI_LIBS) $(PC_LIBS) $(patsubst -L%,-Wl$(comma)-rpath$(comma)%,$(filter -L%,$(PC_LIBS))) -lm
REVISION := $(or $(if $(wildcard .git),$(call \
	probe,git -c safe.directory='*' describe --always --dirty --abbrev=12)),unknown)

# CUDA: nvcc, and each library with its header from the first root that has both: what `launch/quickstart --gpu` set up
# here, the toolkit's, the system's, or the nvidia packages of Python.
WHEELS := $(if $(wildcard .cuda/complete),$(abspath $(wildcard .cuda/lib/python3*/site-packages/nvidia)))
ifeq ($(CUDA),0)
override NVCC :=
else
NVCC := $(or $(wildcard $(WHEELS:%=%/cu13/bin/nvcc)),$(call probe,command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
endif
ifneq ($(NVCC),)
PYTHON_NVIDIA := $(or $(WHEELS),$(call probe,python3 -c 'import nvidia; print(*nvidia.__path__)'))
CUDA_ROOTS := $(CUDA_HOME) $(if $(WHEELS),,$(patsubst %/bin/nvcc,%,$(realpath $(NVCC))) /usr/local/cuda /usr) \
	$(wildcard $(PYTHON_NVIDIA:%=%/*))
header_in = $(firstword $(wildcard $(1)/include/$(2) $(1)/include/*-linux-gnu/$(2)))
library_in = $(firstword $(wildcard $(foreach d,lib64 lib lib/*-linux-gnu,$(addprefix $(1)/$d/,$(2) $(2).[0-9]*))))
has_both = $(and $(call header_in,$(1),$(2)),$(call library_in,$(1),$(3)))
root_of = $(firstword $(foreach r,$(CUDA_ROOTS),$(if $(call has_both,$r,$(1),$(2)),$r)))
CUDA_NEEDS := cuda_runtime.h:libcudart_static.a cudnn.h:libcudnn.so cublas_v2.h:libcublas.so nccl.h:libnccl.so
header = $(firstword $(subst :, ,$(1)))
library = $(lastword $(subst :, ,$(1)))
root = $(call root_of,$(header),$(library))
GPU_LIBS := $(foreach n,$(CUDA_NEEDS),$(call library_in,$(call root,$n),$(call library,$n)))
GPU_INCLUDES := $(foreach n,$(CUDA_NEEDS),$(dir $(call header_in,$(call root,$n),$(call header,$n))))
CUDA_MISSING := $(strip $(foreach n,$(CUDA_NEEDS),$(if $(call root,$n),,$(call library,$n))))
endif
CUDA_VERSION := $(if $(NVCC),$(call probe,$(NVCC) --version | grep -o 'release [0-9.]*' | cut -d' ' -f2))
GPU := $(if $(CUDA_VERSION),$(if $(CUDA_MISSING),,yes))
CUDA_FOUND := $(if $(filter 0,$(CUDA)),off (CUDA=0),$(if $(CUDA_VERSION),$(CUDA_VERSION)$(if \
	$(CUDA_MISSING), without $(CUDA_MISSING)),no nvcc))$(if $(GPU),, - building for the CPU alone)

# --- flags -----------------------------------------------------------------------------------------

NAME := dtrain$(if $(DEBUG),-debug)
CUDA_BUILD := build/cuda
BUILD := build/$(notdir $(lastword $(filter-out -%,$(CC))))-$(MARCH)$(if $(DEBUG),-debug)
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wconversion -Wformat=2 -Wundef -Wvla \
	$(if $(findstring gcc,$(CC)),-Wsign-conversion -Wdouble-promotion,-Wno-sign-conversion) $(if $(WERROR),-Werror)
SPEED := $(if $(DEBUG),-O1 -g -fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined \
	-fno-omit-frame-pointer,-O3)
# CPPFLAGS, CFLAGS and LDFLAGS are the user's: they add, and cannot take away what the bits depend on.
CPP_FLAGS = -D_GNU_SOURCE -Iinclude -I. $(CPPFLAGS) $(MPI_CFLAGS) $(PC_CFLAGS)
C_FLAGS = $(CFLAGS) -std=c11 $(SPEED) -march=$(MARCH) -fno-fast-math -ffp-contract=off -fno-math-errno $(WARNINGS)

GPU_CFLAGS = -fPIC -fvisibility=hidden $(addprefix -isystem ,$(sort $(GPU_INCLUDES)))
GPU_LDFLAGS = $(addprefix -Wl$(comma)-rpath$(comma),$(sort $(dir $(GPU_LIBS)))) $(GPU_LIBS) \
	-lstdc++ -lpthread -lrt -ldl
SM ?= 80 90 # machine code for these, and PTX of the last for what comes after
# -lineinfo lets compute-sanitizer and the profilers name lines; the machine code stays the same.
NVCC_FLAGS = -O3 -lineinfo -std=c++17 -Xcompiler -fPIC$(comma)-Wall$(comma)-Wextra -Xptxas -v \
	$(if $(WERROR),-Werror all-warnings) \
	$(foreach s,$(SM),-gencode arch=compute_$s$(comma)code=sm_$s) \
	-gencode arch=compute_$(lastword $(SM))$(comma)code=compute_$(lastword $(SM))

say = $(if $(V),,@echo '  $(1) $@';)

# --- sources: every .c of these folders ------------------------------------------------------------

# The GPU part, a shared object beside the program (include/gpu.h), in which it finds what it calls (-rdynamic). So the
# program has what it never calls: model/dropout.c for bench/dropout, kernels/reference for the emulated GPU.
GPU_SOURCES := $(wildcard src/cuda/*.c)
GPU_KERNELS := $(patsubst %.cu,$(CUDA_BUILD)/%.o,$(wildcard kernels/cuda/*.cu kernels/fused/*.cu)) # for every CC
GPU_OBJECTS := $(GPU_SOURCES:%.c=$(BUILD)/%.o) $(GPU_KERNELS)
GPU_PART := $(if $(GPU),$(NAME)-cuda.so)

SOURCES := $(filter-out $(GPU_SOURCES),$(wildcard src/*.c src/*/*.c kernels/*/*.c))
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) $(if $(DEBUG),$(BUILD)/tests/support/keep_plugins.o)
PARTS := $(filter-out $(BUILD)/src/main.o,$(OBJECTS)) # what the unit tests link
all: $(NAME) $(GPU_PART) ## build ./dtrain (the default)
	@$(if $(GPU),,rm -f $(NAME)-cuda.so)

# What lies here is what this CC, MARCH and DEBUG make, also when another was built in between.
$(NAME) $(NAME)-cuda.so: %: $(BUILD)/% always
	@cmp -s $< $@ || cp --remove-destination $< $@

$(BUILD)/$(NAME): $(OBJECTS)
	$(call say,LD) $(CC) $(C_FLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LIBS) -ldl

$(BUILD)/$(NAME)-cuda.so: $(GPU_OBJECTS)
	$(call say,LD) $(CC) $(C_FLAGS) $(LDFLAGS) -shared -o $@ $^ $(GPU_LDFLAGS)

$(GPU_OBJECTS): CPP_FLAGS += $(GPU_CFLAGS)
$(GPU_OBJECTS): $(CUDA_BUILD)/toolkit

# And another CUDA has another nvcc, other headers and libraries; SM names other machines. The host's part is its own.
TOOLKIT = $(NVCC) $(CUDA_VERSION) $(GPU_LIBS) $(SM) $(call probe,uname -m)
$(CUDA_BUILD)/toolkit: always
	@mkdir -p $(@D)
	@echo '$(TOOLKIT)' | cmp -s - $@ || echo '$(TOOLKIT)' > $@

# What ptxas tells of registers and local memory lies beside it: tests/gpu/compiled_kernels.py.
$(CUDA_BUILD)/%.o: %.cu $(CUDA_BUILD)/toolkit | found
	@mkdir -p $(@D)
	$(call say,NVCC) $(NVCC) $(NVCC_FLAGS) -Iinclude -I. -MMD -MP -MF $(@:.o=.d) -c -o $@ $< >$(@:.o=.ptxas) 2>&1; \
	  code=$$?; grep -Ev '^ptxas info|bytes stack frame' $(@:.o=.ptxas) >&2; exit $$code

# Multiply-adds where they are written and nowhere else: kernels/README.md.
$(CUDA_BUILD)/kernels/fused/%.o: NVCC_FLAGS += -fmad=false

$(BUILD)/%.o: %.c $(BUILD)/toolchain | found
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPP_FLAGS) $(C_FLAGS) -MMD -MP -c -o $@ $<

# Off elsewhere, so that bits are not the compiler's choice: kernels/README.md. This one is held to its CUDA twin.
$(BUILD)/src/model/dropout.o: C_FLAGS += -ffp-contract=fast

# The revision is compiled into the program and into its GPU part, anew when it changes.
VERSIONS := $(BUILD)/src/base/version.o $(BUILD)/src/cuda/part.o
$(VERSIONS): CPP_FLAGS += -DDTRAIN_REVISION='"$(REVISION)"' -DDTRAIN_BUILD='"$(CC) -march=$(MARCH)"'
$(VERSIONS): $(BUILD)/revision
$(BUILD)/revision: always
	@mkdir -p $(@D)
	@echo '$(REVISION)' | cmp -s - $@ || echo '$(REVISION)' > $@

# Another MPI has another mpi.h, another compiler or processor (MARCH=native) other macros: all is compiled anew, as by
# other flags of the user's.
FLAGS := $(subst ','\'',$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS))
COMPILER := $(call probe,{ $(CC) -march=$(MARCH) -dM -E -x c /dev/null; echo '$(FLAGS)'; } | cksum)
TOOLCHAIN := $(COMPILER) $(MPI_VERSION) $(MPI_CFLAGS) $(PC_CFLAGS) $(LIBS)
$(BUILD)/toolchain: always
	@mkdir -p $(@D)
	@echo '$(TOOLCHAIN)' | cmp -s - $@ || echo '$(TOOLCHAIN)' > $@

# What the compiler may use everywhere but here: see there.
BUILT_FOR = $(shell $(CC) -march=$(MARCH) -dM -E -x c /dev/null | sed -n \
	's/^\#define __\(SSE4_2\|AVX\|AVX2\|FMA\|AVX512F\|AVX512VL\|AVX512VNNI\)__ 1/-DBUILT_FOR_\1/p')
$(BUILD)/src/base/built_for.o: CPP_FLAGS += $(BUILT_FOR) -DDTRAIN_BUILD='"$(CC) -march=$(MARCH)"'
$(BUILD)/src/base/built_for.o: private C_FLAGS := $(filter-out -march=%,$(C_FLAGS))

found: # probes, printed once a run
	@$(if $(CC_MISSING),echo 'CC       NOT FOUND: $(CC_MISSING)'; exit 1)
	@printf '%-8s %s\n' MPI '$(or $(MPI_VERSION),NOT FOUND: $(MPI_MISSING))' \
	  cJSON '$(or $(CJSON_VERSION),NOT FOUND: apt-get install libcjson-dev)' \
	  xxHash '$(or $(XXHASH_VERSION),NOT FOUND: apt-get install libxxhash-dev)' \
	  cmocka '$(or $(CMOCKA_VERSION),not found (only the tests need it): apt-get install libcmocka-dev)' \
	  CUDA '$(CUDA_FOUND)'
	@test -n '$(MPI_VERSION)' -a -n '$(CJSON_VERSION)' -a -n '$(XXHASH_VERSION)'

# --- tests and benchmarks ----------------------------------------------------------------------------

include tests/rules.mk bench/rules.mk

# --- to install ---------------------------------------------------------------------------------------

# All of it lies in one folder, as here, so that each part finds the others; the rest of PREFIX leads there.
PREFIX ?= /usr/local
INSTALLED = $(DESTDIR)$(PREFIX)/lib/dtrain
SHARE = $(DESTDIR)$(PREFIX)/share
LAUNCHERS := run variants verify plot fetch-cifar10
# As the shell of a recipe is to expand ~ the paths have no quotes.
refuse_spaces = $(if $(word 2,$(INSTALLED)),$(error PREFIX and DESTDIR cannot have a space: '$(DESTDIR)$(PREFIX)'))

install: all ## install below PREFIX (/usr/local), in DESTDIR: program, launchers, slurm/, man page, completion
	$(refuse_spaces)
	install -d $(INSTALLED)/launch $(INSTALLED)/slurm $(DESTDIR)$(PREFIX)/bin $(SHARE)/man/man1 \
	  $(SHARE)/bash-completion/completions
	rm -f $(INSTALLED)/$(NAME)-cuda.so
	install $(NAME) $(GPU_PART) $(INSTALLED)
	install $(LAUNCHERS:%=launch/%) launch/convert-cifar10 $(INSTALLED)/launch
	install -m 644 launch/*.sh $(INSTALLED)/launch
	install -m 644 slurm/* $(INSTALLED)/slurm
	ln -sf ../lib/dtrain/$(NAME) $(DESTDIR)$(PREFIX)/bin/
	for name in $(LAUNCHERS); do ln -sf ../lib/dtrain/launch/$$name $(DESTDIR)$(PREFIX)/bin/dtrain-$$name && \
	  sed -i "s,launch/$$name\>,dtrain-$$name,g; s,\([^.]\)\./dtrain\>,\1dtrain,g" $(INSTALLED)/launch/*; done
	./$(NAME) --help > $(INSTALLED)/help
	launch/from-help man < $(INSTALLED)/help > $(SHARE)/man/man1/dtrain.1
	launch/from-help completion < $(INSTALLED)/help > $(SHARE)/bash-completion/completions/dtrain
	chmod 644 $(SHARE)/man/man1/dtrain.1 $(SHARE)/bash-completion/completions/dtrain
	rm $(INSTALLED)/help
	ln -sf dtrain $(SHARE)/bash-completion/completions/dtrain-run

uninstall: ## take it away again
	$(refuse_spaces)
	rm -rf $(INSTALLED)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(NAME) $(LAUNCHERS:%=dtrain-%)) $(SHARE)/man/man1/dtrain.1 \
	  $(addprefix $(SHARE)/bash-completion/completions/,dtrain dtrain-run)

# --- to develop ---------------------------------------------------------------------------------------

test: ## run every test (installs what they need)
	tests/run

# In a folder of its own, so that all is compiled; linked is only what there must be for that.
INDEXED := build/indexed
compile_commands.json: Makefile ## what compiles what, for editors and clang-tidy, by bear
	@rm -rf $(INDEXED)
	bear -- $(MAKE) -s -j"$$(nproc)" BUILD=$(INDEXED) unit bench

LINTED := $(SOURCES) $(wildcard tests/unit/*.c tests/unit/fuzz/*.c tests/support/*.c bench/*.c) \
	$(if $(GPU),$(GPU_SOURCES) $(wildcard tests/support/*/*.c bench/cuda/*.c))
lint: compile_commands.json ## read the sources without running them: tests/unit/lint.py, clang-tidy (minutes)
	tests/exec tests/unit/lint.py
	$(if $(GPU),,@echo '# src/cuda is left out: it needs the headers of CUDA, cuDNN and NCCL')
	printf '%s\n' $(LINTED) | xargs -P "$$(nproc)" -n 4 clang-tidy --quiet -p . \
	  --header-filter='^(\./|$(CURDIR)/)?(src|include|kernels|tests|bench)/'

# Not the kernels of engines: their loops lie as they are to be read. known.c is a table that a program writes.
FORMATTED := $(filter-out src/verify/known.c,$(wildcard $(addsuffix /*.[ch],src src/* include kernels/definition \
	kernels/reference bench bench/cuda tests/unit tests/unit/fuzz tests/support tests/support/emulated \
	tests/support/shim)))
format: ## lay out C as clang-format does (.clang-format), all but the kernels of engines
	clang-format -i $(FORMATTED)

print-formatted: # for tests/unit/lint.py
	@printf '%s\n' $(FORMATTED)

clean: ## remove what was built
	rm -rf build compile_commands*.json dtrain dtrain-debug dtrain-clang *-cuda.so

help: ## this list
	@sed -n 's/^\([a-z_.]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 32
	@sed -n 's/^#   /  settings:     /p' $(MAKEFILE_LIST)

.PHONY: all print-formatted test install uninstall lint format clean help found always
-include $(OBJECTS:.o=.d) $(GPU_OBJECTS:.o=.d)

# dtrain - `make` builds ./dtrain, `make help` lists the rest.
#
#   CC=gcc|clang   MARCH=native|x86-64-v3|x86-64-v2|...   DEBUG=1   CUDA=0   WERROR=1   V=1

CC = gcc
MPICC ?= mpicc
MARCH ?= native
CUDA ?= auto

# --- probes: what this machine has -----------------------------------------------------------------

probe = $(shell $(1) 2>/dev/null)
MPI_CFLAGS := $(call probe,$(MPICC) -showme:compile)
MPI_LIBS := $(call probe,$(MPICC) -showme:link)
MPI_VERSION := $(call probe,$(MPICC) -showme:version | grep -o 'Open MPI [0-9.]*')
CJSON_VERSION := $(call probe,pkg-config --modversion libcjson)
XXHASH_VERSION := $(call probe,pkg-config --modversion libxxhash)
CMOCKA_VERSION := $(call probe,pkg-config --modversion cmocka)
LIBS := $(MPI_LIBS) $(call probe,pkg-config --libs libcjson libxxhash) -lm
REVISION := $(or $(call probe,git describe --always --dirty --abbrev=12),unknown)

ifeq ($(CUDA),0)
CUDA_VERSION := off (CUDA=0)
else
CUDA_VERSION := $(call probe,nvcc --version | grep -o 'release [0-9.]*' | cut -d' ' -f2)
endif

# --- flags -----------------------------------------------------------------------------------------

comma := ,
NAME := dtrain$(if $(DEBUG),-debug)
BUILD := build/$(notdir $(CC))-$(MARCH)$(if $(DEBUG),-debug)
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes $(if $(WERROR),-Werror)
SPEED := $(if $(DEBUG),-O1 -g -fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined \
	-fno-omit-frame-pointer,-O3)
CPPFLAGS += -D_GNU_SOURCE -Iinclude -I. $(MPI_CFLAGS)
CFLAGS += -std=c11 $(SPEED) -march=$(MARCH) -ffp-contract=fast -fno-math-errno $(WARNINGS)

say = $(if $(V),,@echo '  $(1) $@';)

# --- sources: every .c of these folders ------------------------------------------------------------

SOURCES := $(wildcard src/*.c src/*/*.c kernels/cpu/*.c kernels/reference/*.c)
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o)
PARTS := $(filter-out $(BUILD)/src/main.o,$(OBJECTS)) # what the unit tests link
TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/test_*.c tests/mpi/*.c))

all: $(NAME) ## build ./dtrain (the default)

$(NAME): $(OBJECTS)
	$(call say,LD) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/%.o: %.c | found
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# The revision is compiled into one file, rebuilt when it changes.
$(BUILD)/src/version.o: CPPFLAGS += -DDTRAIN_REVISION='"$(REVISION)"' -DDTRAIN_BUILD='"$(CC) -march=$(MARCH)"'
$(BUILD)/src/version.o: $(BUILD)/revision
$(BUILD)/revision: always
	@mkdir -p $(@D)
	@echo '$(REVISION)' | cmp -s - $@ || echo '$(REVISION)' > $@

found: # probes, printed once a run
	@printf '%-8s %s\n' MPI '$(or $(MPI_VERSION),NOT FOUND: apt-get install libopenmpi-dev openmpi-bin)' \
	  cJSON '$(or $(CJSON_VERSION),NOT FOUND: apt-get install libcjson-dev)' \
	  xxHash '$(or $(XXHASH_VERSION),NOT FOUND: apt-get install libxxhash-dev)' \
	  cmocka '$(or $(CMOCKA_VERSION),not found (only the tests need it): apt-get install libcmocka-dev)' \
	  CUDA '$(or $(CUDA_VERSION),not found) - this revision has no GPU engine yet: building for the CPU'
	@test -n '$(MPI_VERSION)' -a -n '$(CJSON_VERSION)' -a -n '$(XXHASH_VERSION)'

unit: $(TESTS) ## build the unit tests

$(TESTS): $(BUILD)/%: %.c $(PARTS)
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CPPFLAGS) -MMD -MP -Itests/unit $(CFLAGS) $(LDFLAGS) -o $@ $< $(PARTS) $(LIBS) -lcmocka

test: ## run every test (installs what they need)
	tests/run

clean: ## remove what was built
	rm -rf build dtrain dtrain-debug

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@sed -n 's/^#   /  settings:     /p' $(MAKEFILE_LIST)

.PHONY: all unit test clean help found always
-include $(OBJECTS:.o=.d) $(TESTS:=.d)

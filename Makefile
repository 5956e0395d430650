# make demo and make test need python3 (3.10 to 3.13) with venv and its headers, and a C++ compiler; all else goes into
# .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
# pip tells what it fetches and builds: a first installation takes minutes.
INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --constraint $(CONSTRAINTS)
PYTEST := $(BIN)/python -m pytest
FORMATTED := $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'benchmarks/*.cu' 'benchmarks/*.cuh')
# The tests that run the CUDA kernels on the host.
HOST_TESTS := $(filter-out %_compile.py %_device.py,$(wildcard tests/kernels/test_cuda_*.py))

.PHONY: demo docs test test-more test-slow test-interpreter test-lower test-python test-pages fuzz faults fuzz-files counted reliability wheel-test licences lint sanitize cuda-compile gpu bench bench-quick bench-grid bench-report bench-store bench-compare format clean

demo: $(VENV)/demo-installed
	$(BIN)/python -m vssn.demo --output demo_output

# Two processes of one thread each: more threads than cores have to wait for each other.
test: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadgroup -m "not slow and not more"

# Further cases of what other tests show, minutes in all.
test-more: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadgroup -m more

test-slow: $(VENV)/test-installed
	$(PYTEST) -m slow

# The Triton kernels in the interpreter: what `make test` leaves out of it.
test-interpreter: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m slow tests/kernels/test_triton.py

# What a machine with less would run: the ops' tests on each instruction set below this one's, and with PyTorch's own
# products held to the least. There Inductor of PyTorch 2.13 writes C++ that does not compile (at::vec): no test of
# compiled_code, as what needs Inductor is named.
# Each is a target too, as make test-lower-avx2. QUICK=1: values and gradients of every op alone. RECORD=1: counted.
CPU := $(shell grep -m 1 ^flags /proc/cpuinfo)
# Where vdpbf16ps is slow (csrc/cpu/dispatch.cpp), its kernels are not the ones in use.
OF_BFLOAT16 := $(if $(filter amx_bf16,$(CPU)),avx512_bf16 avx512,$(if $(filter avx512_fp16,$(CPU)),avx512_bf16,avx512))
LOWER := $(if $(filter avx512_bf16,$(CPU)),$(OF_BFLOAT16)) $(if $(filter avx512f,$(CPU)),avx2) $(if $(filter avx2,$(CPU)),generic)
LOWER_TESTS := $(addprefix tests/kernels/,test_ops.py test_cpu_kernels.py test_cpu_math.py test_single_steps.py test_program.py \
    test_properties.py test_stress.py test_not_finite.py) -k "not cuda and not every_instruction_set"
# What cannot differ between instruction sets, or takes long beside what it shows, is left out: registration, compilation.
QUICK_TESTS := $(addprefix tests/kernels/,test_ops.py test_cpu_kernels.py test_cpu_math.py test_single_steps.py test_properties.py) \
    -k "cpu and not compile and not opcheck and not every_instruction_set"
LEAST := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
lower = OMP_NUM_THREADS=1 $(if $(RECORD),MADE_BY="make test-lower RECORD=1" $(BIN)/python tests/counted_run.py lower $(1), \
    $(PYTEST) -q) -n 2 -m "not slow"
test-lower: $(LOWER:%=test-lower-%) test-lower-torch
test-lower-avx512_bf16 test-lower-avx512 test-lower-avx2 test-lower-generic: test-lower-%: $(VENV)/test-installed
	VSSN_CPU_ISA=$* $(call lower,"kernels for $*") $(if $(QUICK),$(QUICK_TESTS),$(LOWER_TESTS))
test-lower-torch: $(VENV)/test-installed
	$(LEAST) $(call lower,"products of PyTorch held to the least") \
	    $(if $(QUICK),$(QUICK_TESTS),-k "not compiled_code" tests/kernels tests/nn tests/inference)

# The tests of the ops, layers, models and training on another Python and PyTorch, in an environment of their own; those
# of the CUDA kernels on the host ask nothing more of either. RECORD=1: counted.
#     make test-python PYTHON=python3.10 TORCH=2.6.0
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
OTHER = build/python-$(OTHER_PYTHON)-torch-$(TORCH)
OTHER_PYTHON = $(shell $(PYTHON) -c "import platform; print(platform.python_version())")
OTHER_TESTS := $(addprefix tests/,kernels nn likelihoods inference models training test_install.py test_wrong_arguments.py)
test-python:
	mkdir -p $(OTHER)
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $(OTHER)/constraints.txt
	$(MAKE) VENV=$(OTHER) CONSTRAINTS=$(OTHER)/constraints.txt $(OTHER)/test-installed
	OMP_NUM_THREADS=1 MADE_BY="make test-python PYTHON=python$(OTHER_PYTHON) TORCH=$(TORCH) RECORD=1" $(OTHER)/bin/python \
	    $(if $(RECORD),tests/counted_run.py versions "Python $(OTHER_PYTHON) with PyTorch $(TORCH)",-m pytest) \
	    -n 2 --dist loadgroup -m "not slow" -k "not cuda" $(OTHER_TESTS)

# Calls drawn at random on every backend: make fuzz CASES=100000 MINUTES=30 SEED=1
CASES ?= 10000
MINUTES ?= 60
SEED ?= 0
fuzz: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --cases $(CASES) --minutes $(MINUTES) --seed $(SEED) $(if $(RECORD),--record)

# The checks of numbers, threads and bad input with the long ones, counted for RELIABILITY.md; `make sanitize RECORD=1`
# and `make fuzz RECORD=1` are others. Then: make reliability
COUNTED := OMP_NUM_THREADS=1 MADE_BY="make counted" $(BIN)/python tests/counted_run.py
counted: $(VENV)/test-installed
	$(COUNTED) stress "the ends of what numbers can be" tests/kernels/test_stress.py
	$(COUNTED) stress "NaN and inf in each input" tests/kernels/test_not_finite.py
	$(COUNTED) threads "threads and children" tests/kernels/test_python_threads.py tests/kernels/test_cpu_threads.py
	$(COUNTED) arguments "bad input" tests/test_bad_input.py

# Source archive and wheel, built, installed in an environment of their own and tested there; nothing is fetched.
wheel-test: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/wheel_check.py

# LICENSES.md: what the installed packages say of themselves.
licences: $(VENV)/dev-installed
	$(BIN)/python tests/licences.py

# The page of what the long checks counted, of the records in results/reliability.
reliability: $(VENV)/test-installed
	$(BIN)/python -m benchmarks.reliability

# A training that is killed a hundred times, in its writes above all, and other faults: make faults KILLS=1000 SEED=1
KILLS ?= 100
faults: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults.py --kills $(KILLS) --minutes $(MINUTES) --seed $(SEED) --record

# Damaged files for every loader and reader, counted; SIGTERM ends it early: make fuzz-files INPUTS=1000000 MINUTES=600
INPUTS ?= 100000
JOBS ?= 2
fuzz-files: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz_files.py --inputs $(INPUTS) --minutes $(MINUTES) --seed $(SEED) --jobs $(JOBS) --record

# Every page of the documentation is a program: as it stands there, with smaller numbers. What else is held of pages, make
# test holds.
test-pages: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m slow tests/docs

lint: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

# The site of the documentation, into build/site; a warning is an error.
docs: $(VENV)/dev-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Python itself is not built with the sanitizers: their runtime, and what it must find beside it, are loaded before.
sanitize: $(VENV)/test-installed
	$(if $(RECORD),MADE_BY="make sanitize RECORD=1" $(BIN)/python tests/counted_checks.py sanitizers \
	    "CPU kernels: Address and UndefinedBehavior; Thread") $(MAKE) -C csrc/cpu/sanitize -j2
	$(MAKE) -C csrc/cuda/host -j2 sanitized PYTHON=$(abspath $(BIN))/python
	VSSN_CUDA_HOST=sanitized ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 OMP_NUM_THREADS=1 \
	    LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	    $(if $(RECORD),MADE_BY="make sanitize RECORD=1" $(BIN)/python tests/counted_run.py sanitizers \
	        "CUDA kernels on the host: Address and UndefinedBehavior",$(PYTEST)) -q -n 2 -p no:cacheprovider $(HOST_TESTS)

# Every .cu for every architecture; without nvcc all of it is skipped, and says so. QUICK=1: optimised for sm_90a, whose
# machine code is read; for the others without optimisation, which tells of errors alone, in two fifths of the time.
cuda-compile: $(VENV)/test-installed
	$(PYTEST) -n 2 --dist loadgroup tests/kernels/test_cuda_compile.py \
	    -k $(if $(QUICK),"not without_spills or sm_90a","not unoptimised")

# All that needs a GPU, on the Python, PyTorch and Triton that are installed: no network, no pins, under ten minutes.
# OUT=folder: results and logs go there as well. NO_BUILD=1: of the build that is there.
gpu:
	$(PYTHON) -m benchmarks.gpu$(if $(NO_BUILD), --no-build)$(if $(OUT), --out "$(OUT)")

# Close other programs first: two that want all cores make each other's threads wait at every barrier.
bench: $(VENV)/bench-installed
	$(BIN)/python -m benchmarks.run --csv

bench-quick: $(VENV)/bench-installed
	$(BIN)/python -m benchmarks.run --quick

# An hour; what the CSV has of this machine and library is not measured again.
bench-grid: $(VENV)/test-installed
	$(BIN)/python -m benchmarks.gru_grid --resume --plot

bench-report: $(VENV)/bench-installed
	$(BIN)/python -m benchmarks.report --headline README.md

bench-store: $(VENV)/test-installed
	$(PYTEST) benchmarks/regression.py --benchmark-enable --benchmark-autosave

bench-compare: $(VENV)/test-installed
	$(PYTEST) benchmarks/regression.py --benchmark-enable --benchmark-compare --benchmark-compare-fail=median:15%

format: $(VENV)/dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean:
	rm -rf $(VENV) build demo_output vssn_kernels/*.so *.egg-info

# One stamp for each set of extras; a change of the sources of the extension or of the pins installs again.
SOURCES_OF_EXTENSION := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := pyproject.toml constraints.txt $(SOURCES_OF_EXTENSION)

# $(call install,EXTRAS): where only sources of the extension have changed, nothing but vssn itself is installed again.
FETCHED := fetches PyTorch and other packages, then compiles the C++ kernels: a few minutes the first time
COMPILED := compiles the C++ kernels, a minute or two on 2 cores
define install
$(eval ONLY_SOURCES := $(if $(filter-out $(SOURCES_OF_EXTENSION),$?),,yes))
@echo "== vssn[$(1)] into $(VENV): $(if $(ONLY_SOURCES),$(COMPILED),$(FETCHED))"
$(INSTALL) $(if $(ONLY_SOURCES),--no-deps) -e '.[$(1)]'
@echo "== vssn[$(1)] is installed"
@touch $@
endef

$(BIN)/python:
	@echo "== a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-installed: $(BIN)/python $(SOURCES)
	$(call install,train)

$(VENV)/test-installed: $(BIN)/python $(SOURCES)
	$(call install,test)

# JAX is an optional peer: without it the benchmarks say that it is absent.
$(VENV)/bench-installed: $(VENV)/test-installed
	-$(INSTALL) jax
	@touch $@

$(VENV)/dev-installed: $(BIN)/python $(SOURCES)
	$(call install,dev)

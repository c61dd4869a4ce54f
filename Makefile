# Two commands: `make demo` and `make test`. Everything they need is installed on the way (Debian 12, root, make, python3).
.PHONY: demo test proof fuzz check deps deps-dev deps-proof lock clean
PYTEST_ARGS ?=
# Where the environment really is: user relais may not be able to follow the link (config/deploy/install.sh).
ENV = $$(readlink -f .venv)/bin

demo: deps
	@exec $(ENV)/relais up --demo $(if $(filter-out 0,$(ONESHOT)),--oneshot)

test: deps-dev
	$(ENV)/python -m pytest -n 3 --dist loadgroup -m "not proof" $(PYTEST_ARGS)

# What is too heavy for every test run: BouncyCastle on a Java of its own, clamd, long queues, long campaigns of faults.
proof: deps-proof
	$(ENV)/python -m pytest -m proof $(PYTEST_ARGS)

# Ten minutes of mutations against the parsers; findings go to var/fuzz. By hand, not in continuous integration.
FUZZ_SECONDS ?= 600
fuzz: deps-dev
	$(ENV)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

check: deps-dev
	$(ENV)/ruff check .
	$(ENV)/ruff format --check .
	$(ENV)/mypy
	$(ENV)/lint-imports

deps:
	@config/deploy/install.sh runtime

deps-dev:
	@config/deploy/install.sh dev

deps-proof: deps-dev
	@config/deploy/install.sh proof

# The lock files: every package with its hashes. Run after changing the dependencies in pyproject.toml.
lock:
	$(ENV)/python -m pip install --quiet pip-tools
	$(ENV)/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --extra build -o requirements.lock pyproject.toml
	$(ENV)/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --extra build --extra dev -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv var build *.egg-info

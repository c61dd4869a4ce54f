# Two commands: `make demo` and `make test`. Everything they need is installed on the way (Debian 12, root, make, python3).
.PHONY: demo test check deps deps-dev lock clean
PYTEST_ARGS ?=

demo: deps
	@exec .venv/bin/relais up --demo $(if $(filter-out 0,$(ONESHOT)),--oneshot)

test: deps-dev
	.venv/bin/python -m pytest -n 2 $(PYTEST_ARGS)

check: deps-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

deps:
	@config/deploy/install.sh runtime

deps-dev:
	@config/deploy/install.sh dev

# The lock files: every package with its hashes. Run after changing the dependencies in pyproject.toml.
lock:
	.venv/bin/python -m pip install --quiet pip-tools
	.venv/bin/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --extra build -o requirements.lock pyproject.toml
	.venv/bin/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --extra build --extra dev -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv var build *.egg-info

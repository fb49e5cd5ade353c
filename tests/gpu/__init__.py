"""What only a GPU can show, as one command: `tests/gpu/check.sh OUT`; without a GPU it runs the same at toy size."""

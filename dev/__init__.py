"""One machine: embedded servers, a local model provider and the runner that keeps processes alive."""

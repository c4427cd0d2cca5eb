"""What queues.yaml and the environment say: read, checked, typed. Imports only `worker.errors`."""

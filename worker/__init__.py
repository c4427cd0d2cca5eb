"""How jobs are carried: queue policy, accept, fetch, leases, outcomes, settles, batches."""

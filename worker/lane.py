def command(queue, loglevel="INFO"):
    m = queue.prefetch_multiplier * (queue.batch.max_jobs if queue.batch else 1)
    a = ["worker","-Q",queue.name,"-n",f"{queue.name}@%h","--pool",queue.pool,"--concurrency",str(queue.concurrency),"--prefetch-multiplier",str(m),"--without-mingle","--without-gossip","-E","--loglevel",loglevel]
    if queue.max_tasks_per_child: a += ["--max-tasks-per-child",str(queue.max_tasks_per_child)]
    return a

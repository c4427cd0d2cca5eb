"""Keep results for a while, in this process and in Redis, and let equal questions in flight share one answer."""

"""`./forebay chaos`: faults, the load beside them, and the verdict."""

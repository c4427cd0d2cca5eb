"""What a job is and what it does. Producers need only ``from tasks import enqueue``."""

from tasks.producer import enqueue
from tasks.producer.enqueue import Options
from tasks.producer.job import Group, Job
from tasks.producer.kinds.bulk_insert import BulkInsert
from tasks.producer.kinds.chat import Chat
from tasks.producer.kinds.embedding import Embedding

__all__ = ["BulkInsert", "Chat", "Embedding", "Group", "Job", "Options", "enqueue"]

"""The same work as plain Celery on Redis does it: what the benchmarks compare with. Run by `bench.stage`.

A chat and an embedding are one call through the same client of the same provider, without any database; an insert is
one row in one transaction.
"""

import csv
import io
import json
import os
from functools import cache
from typing import Any

import openai
import psycopg2
from celery import Celery

app = Celery("plain", broker=os.environ["PLAIN_BROKER_URL"], backend=os.environ["PLAIN_BROKER_URL"])
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_serializer="json",
    result_expires=3600,
    broker_connection_retry_on_startup=True,
)


@cache
def client() -> openai.OpenAI:
    return openai.OpenAI(max_retries=0)


@cache
def database(_pid: int) -> Any:
    return psycopg2.connect(os.environ["PLAIN_DATABASE_URL"])


@app.task(name="plain.chat")  # type: ignore[untyped-decorator]
def chat(text: str) -> str:
    parts = client().chat.completions.create(
        model=os.environ["OPENAI_CHAT_MODEL"], messages=[{"role": "user", "content": text}], stream=True
    )
    return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


@app.task(name="plain.embedding")  # type: ignore[untyped-decorator]
def embedding(text: str) -> list[float]:
    reply = client().embeddings.create(model=os.environ["OPENAI_EMBEDDING_MODEL"], input=[text])
    return reply.data[0].embedding


@app.task(name="plain.insert")  # type: ignore[untyped-decorator]
def insert(number: int, text: str) -> None:
    connection = database(os.getpid())
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO bench_rows (number, text) VALUES (%s, %s)", (number, text))


@app.task(name="plain.load")  # type: ignore[untyped-decorator]
def load(rows: list[list[Any]]) -> None:
    file = io.StringIO()
    csv.writer(file).writerows((*row[:4], json.dumps(row[4])) for row in rows)
    file.seek(0)
    connection = database(os.getpid())
    with connection, connection.cursor() as cursor:
        cursor.copy_expert("COPY bench_load FROM STDIN (FORMAT csv)", file)

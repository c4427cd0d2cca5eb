"""Ask one question and wait for the answer, then read a second answer while the model writes it."""

from uuid import uuid4

from tasks import enqueue


def main() -> None:
    """Send two turns of one conversation."""
    conversation = f"example-{uuid4().hex[:8]}"
    print("conversation:", conversation)

    question = enqueue.chat(
        "What is the capital of France?",
        conversation=conversation,
        user="example",
        system="Answer in one short sentence.",
        temperature=0.0,
        max_tokens=30,
    )
    print("answer:", question.result(timeout=60)["text"])

    story = enqueue.chat(
        "Tell me a story in two sentences.", conversation=conversation, user="example", max_tokens=60, stream=True
    )
    print("story: ", end="")
    for text in story.texts(timeout=60):  # stream() gives events instead, with ids to go on from
        print(text, end="", flush=True)
    print()
    print("tokens:", story.result(timeout=60)["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()

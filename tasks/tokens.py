"""Reckon what a text costs in tokens, without the model's own tokenizer."""


def estimate(text: str) -> int:
    """Return about how many tokens a text has: one for each 4 bytes of UTF-8, rounded up.

    OpenAI's rule of thumb is 4 characters a token of English; counting bytes keeps other scripts from being
    underestimated.
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)

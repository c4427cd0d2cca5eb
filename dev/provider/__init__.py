"""The local models behind OpenAI's HTTP protocol."""

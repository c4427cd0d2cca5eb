"""What a prompt is reckoned to cost, and that reckoning costs next to nothing."""

from tasks import tokens


def test_a_chat_costs_its_messages_its_tools_and_its_answer() -> None:
    messages = [{"role": "system", "content": "four"}, {"role": "user", "content": "eight by"}]
    assert tokens.cost_of_chat(messages, max_tokens=10) == 3 + 1 + 3 + 2 + 10
    assert tokens.cost_of_chat(messages, answer_tokens=100) == 109
    assert tokens.cost_of_chat(messages, tools=[{}], max_tokens=10) == 20
    assert tokens.cost_of_chat([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], max_tokens=1) > 5
    assert tokens.cost_of_chat([{"role": "assistant", "content": None}], max_tokens=1) == 4

"""The official `openai` client against a running `katsura up`, unmodified.

    pip install openai
    python examples/openai_client.py [--url http://127.0.0.1:8080] [--model NAME] [--key KEY]

It lists the models, streams a chat, and continues a response by its id, twice: two continuations are two branches.
"""

import argparse

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="", help="the first one listed, unless named")
    parser.add_argument("--key", default="local", help="an API key; any text will do on this machine without one")
    given = parser.parse_args()
    client = OpenAI(base_url=f"{given.url}/v1", api_key=given.key)

    models = [model.id for model in client.models.list()]
    print("models:", ", ".join(models))
    model = given.model or models[0]

    print("\nchat> What is the capital of France?")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=48,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage is not None:
            print(f"\n({chunk.usage.prompt_tokens} prompt + {chunk.usage.completion_tokens} drawn tokens)")

    first = client.responses.create(
        model=model, input="What is the capital of Japan?", max_output_tokens=48, temperature=0
    )
    print(f"\nresponse {first.id}\n  {first.output_text}")
    for question in ("Which food is it famous for?", "And of Norway?"):
        follow_up = client.responses.create(
            model=model, input=question, previous_response_id=first.id, max_output_tokens=48, temperature=0
        )
        print(f"> {question}\n  {follow_up.output_text}")


if __name__ == "__main__":
    main()

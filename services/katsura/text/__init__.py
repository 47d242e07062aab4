"""Text: between messages, text and token ids. No torch, no transformers.

Does: tokenises and decodes, renders chat templates in a sandbox, cuts a rendered conversation into one piece per
message, decodes token by token, finds stop strings in a stream.
Called by: the gateway (render, tokenise), attention shards (decode, stop strings), the engine, the CLI.
Must not know: weights, stores, HTTP, which process it runs in.

    messages -> template.ChatTemplate -> segments -> tokenizer.Tokenizer -> ids
    ids -> decoding.IncrementalDecoder -> text -> stops.StopStrings -> text that may be sent
"""

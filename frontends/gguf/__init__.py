"""GGUF files: `model.load(path)` gives the model with its packed weights, `tokenizer.build_tokenizer` its text."""

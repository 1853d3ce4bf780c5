"""The three networks: tokenizer, world model, Q-network."""

"""Engines, batching and the OpenAI-compatible API."""

"""An OpenAI API in front of model servers."""

__version__ = "0.1.0"

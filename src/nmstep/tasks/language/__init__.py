"""Language models: WikiText, masked language models, and the subwords that they share with translation."""

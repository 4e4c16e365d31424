"""The languages of the world's sentences: a new one is a file here and an entry of `language.LANGUAGES`."""

"""How graphs change: patterns, the rules that apply them, and the numeric check of every rewritten site.

`patterns` and `match` say what to look for, `rewriter` applies rules and keeps the books, `check` compares a site's two
spellings on random inputs, `report` is what is told about it, `cleanup` removes what nothing reads any more.
"""

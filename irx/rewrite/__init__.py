"""How graphs change: patterns, the rules that apply them, and the numeric check of every rewritten site.

`patterns` (made of `matchers`, under `conditions`, found as a `match`) say what to look for, `rewriter` applies rules
and keeps the books, `simplify` is for what needs no pattern. `check` compares a site's two spellings on random inputs,
`report` is what is told about it, `recorder` takes back what was only tried, `cleanup` removes what nothing reads,
`outline` makes fusions of nodes.
"""

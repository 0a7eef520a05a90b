"""Text generation with a cache of keys and values: the simple decoder, and beside it the fast one.

Read `kv_cache`, then `decoding` (the model's own layers, one page), then `packed` (the same, fast), then
`engine`, which turns either into tokens. `settings` and `memory` import no torch.
"""

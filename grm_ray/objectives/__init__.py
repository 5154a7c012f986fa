"""What papers call the objective: losses, regularisers, advantages, KL, schedules.

Pure functions of tensors and numbers: no Ray, no I/O, no config objects. Losses are fp32, one a
pair or one a token, and never reduced here: only the caller knows the global count to divide by.
B counts rows, T tokens. Rows are flat, without padding: row i is `[offsets[i]:offsets[i + 1]]`.
"""

"""Property tests draw the same examples on every run: a red build must be red on the next machine too."""

import hypothesis

hypothesis.settings.register_profile("lossmith", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("lossmith")

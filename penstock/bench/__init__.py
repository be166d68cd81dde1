"""`penstock bench`: a load generator for any server that speaks OpenAI's API, and its figures."""

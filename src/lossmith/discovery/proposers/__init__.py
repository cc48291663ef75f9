"""Who writes candidates: everything that can be asked for proposals and told what became of them."""

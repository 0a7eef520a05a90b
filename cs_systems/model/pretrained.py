"""placeholder"""
def load_pretrained(d): raise NotImplementedError

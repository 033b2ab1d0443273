WORD = "word of helpers"

from autobert_zero.search.cli.search import main


if __name__ == "__main__":
    main()

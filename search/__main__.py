from autobert_zero.search.cli import main


if __name__ == "__main__":
    main()

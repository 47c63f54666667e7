"""What is shown of genomes and runs: pictures, pages, tables and model cards. Needs no torch."""

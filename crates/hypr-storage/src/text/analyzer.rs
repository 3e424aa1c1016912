//! Text becomes words: Unicode words, lower case, accents folded to ASCII, and if the index says so, without
//! stop words and as stems.

use hypr_common::{Error, Result};
use lance_tokenizer::{
    AsciiFoldingFilter, IcuTokenizer, Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer, StopWordFilter,
    TextAnalyzer, TextAnalyzerBuilder, TokenStream as _,
};
use serde::{Deserialize, Serialize};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Longer words are not indexed: they are encoded data, not language. In bytes.
const MAX_WORD_BYTES: usize = 255;

/// How the words of a column are made. The same options apply to the query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextOptions {
    /// Words are reduced to their stems: `running` is found by `run`.
    pub stemming: bool,
    /// The language's commonest words are left out.
    pub stop_words: bool,
    /// Letters lose their accents: `café` is found by `cafe`.
    pub ascii_folding: bool,
    /// The language of stems and stop words, by its English name in lower case.
    pub language: String,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { stemming: false, stop_words: false, ascii_folding: true, language: "english".to_owned() }
    }
}

/// The languages that have stems and stop words.
const LANGUAGES: &[(&str, Language)] = &[
    ("arabic", Language::Arabic),
    ("danish", Language::Danish),
    ("dutch", Language::Dutch),
    ("english", Language::English),
    ("finnish", Language::Finnish),
    ("french", Language::French),
    ("german", Language::German),
    ("greek", Language::Greek),
    ("hungarian", Language::Hungarian),
    ("italian", Language::Italian),
    ("norwegian", Language::Norwegian),
    ("portuguese", Language::Portuguese),
    ("romanian", Language::Romanian),
    ("russian", Language::Russian),
    ("spanish", Language::Spanish),
    ("swedish", Language::Swedish),
    ("tamil", Language::Tamil),
    ("turkish", Language::Turkish),
];

impl TextOptions {
    /// Checks that the language is known.
    ///
    /// # Errors
    /// `InvalidInput` that lists the languages.
    pub fn check(&self) -> Result<()> {
        self.language().map(drop)
    }

    fn language(&self) -> Result<Language> {
        let known = LANGUAGES.iter().find(|(name, _)| *name == self.language);
        known.map(|(_, language)| *language).ok_or_else(|| {
            let names: Vec<&str> = LANGUAGES.iter().map(|(name, _)| *name).collect();
            Error::invalid(format!("language \"{}\" is not known; there is: {}", self.language, names.join(", ")))
        })
    }
}

/// Makes words by one set of options.
#[derive(Clone)]
pub(crate) struct Analyzer {
    /// Of ASCII text, whose words need no dictionary.
    ascii: TextAnalyzer,
    unicode: TextAnalyzer,
    /// Without stop words and stems, for the beginnings of words.
    prefix: TextAnalyzer,
}

impl std::fmt::Debug for Analyzer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Analyzer").finish_non_exhaustive()
    }
}

impl Analyzer {
    pub(crate) fn new(options: &TextOptions) -> Result<Self> {
        let language = options.language()?;
        let unicode = || TextAnalyzer::builder(IcuTokenizer::default().with_simple_split()).dynamic();
        let plain = TextOptions { stemming: false, stop_words: false, ..options.clone() };
        Ok(Self {
            ascii: filters(TextAnalyzer::builder(SimpleTokenizer::default()).dynamic(), options, language),
            unicode: filters(unicode(), options, language),
            prefix: filters(unicode(), &plain, language),
        })
    }

    /// Calls `word` with each word of `text` and its position, from 0; words left out leave gaps.
    pub(crate) fn words(&mut self, text: &str, word: impl FnMut(&str, u32)) {
        if text.is_ascii() {
            return each(&mut self.ascii, text, word);
        }
        match is_nfc_quick(text.chars()) {
            IsNormalized::Yes => each(&mut self.unicode, text, word),
            // A combining mark would split the word.
            _ => each(&mut self.unicode, &text.nfc().collect::<String>(), word),
        }
    }

    /// The words of `text` as an index without stems and stop words has them.
    pub(crate) fn whole_words(&mut self, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        each(&mut self.prefix, &text.nfc().collect::<String>(), |word, _| words.push(word.to_owned()));
        words
    }
}

fn filters(builder: TextAnalyzerBuilder, options: &TextOptions, language: Language) -> TextAnalyzer {
    let mut builder = builder.filter_dynamic(RemoveLongFilter::limit(MAX_WORD_BYTES)).filter_dynamic(LowerCaser);
    // Before folding: the lists and the stemmers know accents.
    if options.stop_words
        && let Some(filter) = StopWordFilter::new(language)
    {
        builder = builder.filter_dynamic(filter);
    }
    if options.stemming {
        builder = builder.filter_dynamic(Stemmer::new(language));
    }
    if options.ascii_folding {
        builder = builder.filter_dynamic(AsciiFoldingFilter);
    }
    builder.build()
}

fn each(analyzer: &mut TextAnalyzer, text: &str, mut word: impl FnMut(&str, u32)) {
    let mut stream = analyzer.token_stream(text);
    while stream.advance() {
        let token = stream.token();
        if !token.text.is_empty() {
            word(&token.text, u32::try_from(token.position).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(options: &TextOptions, text: &str) -> Vec<(String, u32)> {
        let mut words = Vec::new();
        Analyzer::new(options).unwrap().words(text, |word, at| words.push((word.to_owned(), at)));
        words
    }

    fn plain(text: &str) -> Vec<String> {
        words(&TextOptions::default(), text).into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn words_are_lower_case_and_without_accents() {
        assert_eq!(
            plain("To Sherlock Holmes she is always THE woman."),
            ["to", "sherlock", "holmes", "she", "is", "always", "the", "woman"]
        );
        assert_eq!(plain("Café Müller, naïve façade"), ["cafe", "muller", "naive", "facade"]);
        assert_eq!(plain("cafe\u{301} 221B x_y"), ["cafe", "221b", "x", "y"]);
    }

    #[test]
    fn possessives_and_scripts_without_spaces_are_words() {
        assert_eq!(plain("Holmes's and Holmes\u{2019}s"), ["holmes", "s", "and", "holmes", "s"]);
        assert_eq!(plain("東京タワー"), ["東京", "タワー"]);
        assert_eq!(plain("Привет, мир"), ["привет", "мир"]);
    }

    #[test]
    fn ascii_and_unicode_text_split_alike() {
        let text = "It's a 3.5-inch disc; e-mail me@example.com or 221B_Baker";
        let mut ascii = plain(text);
        ascii.push("é".to_owned().replace('é', "e"));
        assert_eq!(plain(&format!("{text} é")), ascii);
    }

    #[test]
    fn options_drop_and_stem_words_and_positions_keep_the_gaps() {
        let options = TextOptions { stemming: true, stop_words: true, ..TextOptions::default() };
        let found = words(&options, "the running of the foxes");
        assert_eq!(found, [("run".to_owned(), 1), ("fox".to_owned(), 4)]);
        let exact = TextOptions { ascii_folding: false, ..TextOptions::default() };
        assert_eq!(words(&exact, "Café"), [("café".to_owned(), 0)]);
    }

    #[test]
    fn an_unknown_language_is_refused_by_name() {
        let options = TextOptions { language: "klingon".to_owned(), ..TextOptions::default() };
        let error = Analyzer::new(&options).unwrap_err();
        assert!(error.message().contains("klingon") && error.message().contains("english"), "{error}");
    }
}

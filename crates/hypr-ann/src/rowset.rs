//! A set of row ids.

/// Ids of a page of bits.
const PAGE: usize = 1 << 16;
type Page = [u64; PAGE / 64];

/// A set of row ids as pages of bits: membership is two loads, however the ids are spread.
#[derive(Clone, Debug, Default)]
pub struct RowSet {
    pages: Vec<Option<Box<Page>>>,
    len: usize,
}

impl RowSet {
    /// Adds `id`.
    pub fn insert(&mut self, id: u64) {
        let (page, bit) = (id as usize / PAGE, id as usize % PAGE);
        if page >= self.pages.len() {
            self.pages.resize(page + 1, None);
        }
        let words = self.pages[page].get_or_insert_with(|| Box::new([0; PAGE / 64]));
        let (word, mask) = (&mut words[bit / 64], 1 << (bit % 64));
        self.len += usize::from(*word & mask == 0);
        *word |= mask;
    }

    /// True when `id` is in it.
    #[inline]
    pub fn contains(&self, id: u64) -> bool {
        let (page, bit) = (id as usize / PAGE, id as usize % PAGE);
        match self.pages.get(page) {
            Some(Some(words)) => words[bit / 64] & 1 << (bit % 64) != 0,
            _ => false,
        }
    }

    /// The number of ids.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.iter().enumerate().filter_map(|(at, page)| Some((at, page.as_ref()?))).flat_map(|(at, page)| {
            page.iter().enumerate().flat_map(move |(word_at, &word)| {
                let first = (at * PAGE + word_at * 64) as u64;
                let next = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest != 0);
                std::iter::successors(Some(word).filter(|word| *word != 0), next)
                    .map(move |word| first + u64::from(word.trailing_zeros()))
            })
        })
    }
}

impl FromIterator<u64> for RowSet {
    fn from_iter<T: IntoIterator<Item = u64>>(ids: T) -> Self {
        let mut set = Self::default();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

impl Extend<u64> for RowSet {
    fn extend<T: IntoIterator<Item = u64>>(&mut self, ids: T) {
        ids.into_iter().for_each(|id| self.insert(id));
    }
}

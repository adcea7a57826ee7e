//! What a connection costs in memory before anything moves: the size of the future that serves it. A limit that breaks
//! is a question (is the new state worth it, times every connection?), not a wall.

use std::convert::Infallible;

use hyper::body::Incoming;

use crate::{http, tcp};

fn size<A, B, C, F: Future<Output = ()>>(_: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

fn size_of_handler<A, F, T>(_: impl Fn(A, ::http::Request<Incoming>) -> F) -> usize
where
    F: Future<Output = Result<T, Infallible>>,
{
    size_of::<F>()
}

#[test]
fn futures_stay_small() {
    let sizes = [
        size(tcp::serve),
        size(http::serve),
        size_of_handler(http::handle),
    ];
    let limits = [2048, 512, 3072];
    assert!(
        sizes.iter().zip(limits).all(|(size, limit)| *size <= limit),
        "{sizes:?} of {limits:?}"
    );
}

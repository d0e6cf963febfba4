//! What the codec costs on the server's hot path: a signing request in, a signature out.

#![expect(clippy::unwrap_used, reason = "a benchmark that can't encode should stop")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use keystead_protocol::{Frame, Opcode, Request, Response, Ski};

fn requests(criterion: &mut Criterion) {
    let request = Request {
        opcode: Opcode::ECDSA_SIGN_SHA256,
        payload: &[7; 32],
        ski: Some(Ski([9; 20])),
        client_ip: Some([192, 0, 2, 1].into()),
        sni: Some(b"www.example.com"),
        ..Request::default()
    };
    let mut bytes = Vec::new();
    request.encode(1, &mut bytes).unwrap();
    let mut group = criterion.benchmark_group("request");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode", |bencher| {
        bencher
            .iter(|| Frame::split(black_box(&bytes)).map(|(frame, _)| Request::decode(frame.body).is_ok()));
    });
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            bytes.clear();
            black_box(&request).encode(1, &mut bytes)
        });
    });
}

fn responses(criterion: &mut Criterion) {
    let mut bytes = Vec::new();
    let mut group = criterion.benchmark_group("response");
    group.throughput(Throughput::Elements(1));
    for (name, length) in [("encode p256", 71), ("encode rsa-2048", 256), ("encode 60 kB", 60_000)] {
        let signature = vec![7; length];
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                bytes.clear();
                Response::Success(black_box(&signature)).encode(1, &mut bytes)
            });
        });
    }
    bytes.clear();
    Response::Success(&[7; 71]).encode(1, &mut bytes).unwrap();
    group.bench_function("decode", |bencher| {
        bencher
            .iter(|| Frame::split(black_box(&bytes)).map(|(frame, _)| Response::decode(frame.body).is_ok()));
    });
}

criterion_group!(codec, requests, responses);
criterion_main!(codec);

/* The pictures of the synthetic set. All arithmetic is on integers, and numbers are rolled in separate
 * statements, so that every compiler and machine draws the same bytes. */
#include "synthetic.h"

#include <stdlib.h>

#include "lenet5.h"
#include "philox.h"

enum { SIDE = LENET5_SIDE, PLANE = SIDE * SIDE, PIXEL = 256 /* units of length in a pixel */ };

/* --- chance ----------------------------------------------------------------------------------- */

/* The numbers of one picture, rolled one after the other. */
struct dice {
    uint32_t set, picture, rolled;
    struct philox_counter block;
};

static uint32_t roll_bits(struct dice *dice)
{
    if (dice->rolled % 4 == 0)
        dice->block = philox4x32(philox_counter(PHILOX_SYNTHETIC, 0, dice->set, dice->picture, dice->rolled / 4), 0);
    return dice->block.c[dice->rolled++ % 4];
}

/* low..high, both included */
static int roll(struct dice *dice, int low, int high)
{
    return low + (int)((uint64_t)roll_bits(dice) * (uint32_t)(high - low + 1) >> 32);
}

/* --- shapes ----------------------------------------------------------------------------------- */

/* The signed distance of a point (u, v) to the outline of a shape of radius r: negative inside, right
 * within a pixel of the outline, elsewhere right in sign. No shape reaches farther than 3/2 r. */
typedef int outline(int u, int v, int r);

static int larger(int a, int b)
{
    return a > b ? a : b;
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

static int box(int u, int v, int half_width, int half_height)
{
    return larger(abs(u) - half_width, abs(v) - half_height);
}

static int bar(int u, int v, int r)
{
    return box(u, v, r, PIXEL * 3 / 2);
}

static int disc(int u, int v, int r)
{
    return (u * u + v * v - r * r) / (2 * r); /* to first order: no square root */
}

static int ring(int u, int v, int r)
{
    return abs(disc(u, v, r * 4 / 5)) - r / 5;
}

static int square(int u, int v, int r)
{
    return box(u, v, r * 7 / 8, r * 7 / 8);
}

static int frame(int u, int v, int r)
{
    return abs(box(u, v, r * 3 / 4, r * 3 / 4)) - r / 5;
}

static int triangle(int u, int v, int r)
{
    return larger(-v, (abs(u) * 222 + v * 128) / 256) - r * 9 / 16; /* sine and cosine of 60 degrees */
}

static int cross(int u, int v, int r)
{
    return smaller(box(u, v, r, r / 3), box(u, v, r / 3, r));
}

static int twin_bars(int u, int v, int r)
{
    return box(u, abs(v) - r * 9 / 16, r, r / 4);
}

static int tee(int u, int v, int r)
{
    return smaller(box(u, v - r * 3 / 4, r, r / 4), box(u, v, r / 4, r));
}

static int half_disc(int u, int v, int r)
{
    return larger(disc(u, v + r / 2, r * 9 / 8), -v - r / 2);
}

static int hourglass(int u, int v, int r)
{
    return larger(abs(v) - r * 7 / 8, (abs(u) - abs(v)) * 3 / 4 - r / 8);
}

/* --- things ----------------------------------------------------------------------------------- */

struct colour {
    int channel[LENET5_CHANNELS]; /* red, green, blue: 0..255, cut off when written */
};

struct canvas {
    int channel[LENET5_CHANNELS][PLANE];
};

struct pose {
    int x, y, cosine, sine; /* a point, and a direction as a unit vector of length 256 */
};

struct thing {
    outline *distance;
    struct pose pose;
    int r;       /* in units of length */
    int opacity; /* 256 hides all behind it */
    struct colour colour;
};

/* The classes, and the colour around which each one's objects vary: a hint, as the sky is around planes. */
static const struct {
    outline *distance;
    struct colour colour;
} classes[LENET5_CLASSES] = {
    {disc, {{230, 60, 50}}},       {ring, {{240, 150, 40}}},     {square, {{225, 215, 60}}},
    {frame, {{110, 200, 60}}},     {triangle, {{40, 160, 110}}}, {cross, {{60, 190, 220}}},
    {twin_bars, {{50, 90, 210}}},  {tee, {{130, 70, 200}}},      {half_disc, {{220, 90, 180}}},
    {hourglass, {{130, 100, 80}}},
};

static struct colour roll_colour(struct dice *dice, int low, int high)
{
    struct colour colour;
    for (int c = 0; c < LENET5_CHANNELS; c++)
        colour.channel[c] = roll(dice, low, high);
    return colour;
}

static struct colour vary_colour(struct dice *dice, struct colour colour, int by)
{
    for (int c = 0; c < LENET5_CHANNELS; c++)
        colour.channel[c] += roll(dice, -by, by);
    return colour;
}

/* At least `margin` from the border. The angle is 2 atan(t / 256) within an eighth of a turn of 0, where
 * a uniform t spreads it evenly enough, and then some quarter turns. */
static struct pose roll_pose(struct dice *dice, int margin)
{
    struct pose pose;
    pose.x = roll(dice, margin, SIDE * PIXEL - margin);
    pose.y = roll(dice, margin, SIDE * PIXEL - margin);
    int t = roll(dice, -106, 106);
    pose.cosine = 256 * (65536 - t * t) / (65536 + t * t);
    pose.sine = 256 * (512 * t) / (65536 + t * t);
    for (int turns = roll(dice, 0, 3); turns > 0; turns--) {
        int cosine = pose.cosine;
        pose.cosine = -pose.sine;
        pose.sine = cosine;
    }
    return pose;
}

/* --- painting --------------------------------------------------------------------------------- */

/* The first and last pixels, in one direction, that a thing at `centre` can touch. */
static int first_pixel(int centre, int r)
{
    return larger((centre - r * 3 / 2) / PIXEL - 1, 0);
}

static int last_pixel(int centre, int r)
{
    return smaller((centre + r * 3 / 2) / PIXEL + 1, SIDE - 1);
}

/* Paints a thing over what is there. At a pixel `cover` of 256 parts are its own: all inside, none outside, and between
 * on the pixel that the outline crosses. */
static void paint(struct canvas *canvas, const struct thing *thing)
{
    const struct pose *pose = &thing->pose;
    for (int y = first_pixel(pose->y, thing->r); y <= last_pixel(pose->y, thing->r); y++)
        for (int x = first_pixel(pose->x, thing->r); x <= last_pixel(pose->x, thing->r); x++) {
            int dx = x * PIXEL + PIXEL / 2 - pose->x, dy = y * PIXEL + PIXEL / 2 - pose->y;
            int u = (dx * pose->cosine + dy * pose->sine) / 256;
            int v = (dy * pose->cosine - dx * pose->sine) / 256;
            int cover = smaller(PIXEL / 2 - thing->distance(u, v, thing->r), PIXEL);
            for (int c = 0; cover > 0 && c < LENET5_CHANNELS; c++) {
                int *value = &canvas->channel[c][y * SIDE + x];
                *value += (thing->colour.channel[c] - *value) * (cover * thing->opacity / 256) / 256;
            }
        }
}

/* How much of the second colour is at a pixel, 0..256: stripes, or clouds, that is a 5 x 5 lattice of
 * random levels, interpolated. */
struct texture {
    bool striped;
    struct pose pose; /* of the stripes */
    int period;       /* of a stripe and its gap, in units of length */
    int lattice[5][5];
};

static struct texture roll_texture(struct dice *dice)
{
    struct texture texture;
    texture.striped = roll(dice, 0, 2) == 0;
    texture.pose = roll_pose(dice, 0);
    texture.period = roll(dice, 4 * PIXEL, 14 * PIXEL);
    for (int i = 0; i < 25; i++)
        texture.lattice[i / 5][i % 5] = roll(dice, 0, 256);
    return texture;
}

static int texture_level(const struct texture *texture, int x, int y)
{
    if (texture->striped) {
        const struct pose *pose = &texture->pose;
        int u = ((x * PIXEL - pose->x) * pose->cosine + (y * PIXEL - pose->y) * pose->sine) / 256;
        return abs(abs(u) % texture->period * 512 / texture->period - 256);
    }
    const int *above = &texture->lattice[y / 8][x / 8], *below = above + 5;
    int right = x % 8, left = 8 - right, lower = y % 8, upper = 8 - lower;
    return ((above[0] * left + above[1] * right) * upper + (below[0] * left + below[1] * right) * lower) / 64;
}

static void paint_background(struct canvas *canvas, struct dice *dice)
{
    struct colour one = roll_colour(dice, 50, 205), other = vary_colour(dice, one, 60);
    struct texture texture = roll_texture(dice);
    for (int i = 0; i < PLANE; i++) {
        int level = texture_level(&texture, i % SIDE, i / SIDE);
        for (int c = 0; c < LENET5_CHANNELS; c++)
            canvas->channel[c][i] = one.channel[c] + (other.channel[c] - one.channel[c]) * level / 256;
    }
}

/* Adds grain, for each value the sum of two random bytes: a triangular distribution. */
static void write_pixels(const struct canvas *canvas, struct dice *dice, uint8_t *pixels)
{
    int grain = roll(dice, 10, 40);
    uint32_t bits = 0;
    for (int i = 0; i < LENET5_PIXELS; i++, bits >>= 16) {
        if (i % 2 == 0)
            bits = roll_bits(dice);
        int noise = ((int)(bits & 255) + (int)(bits >> 8 & 255) - 255) * grain / 256;
        pixels[i] = (uint8_t)smaller(larger(canvas->channel[i / PLANE][i % PLANE] + noise, 0), 255);
    }
}

/* --- the picture ------------------------------------------------------------------------------ */

static struct thing roll_clutter(struct dice *dice)
{
    struct thing clutter = {.opacity = 256};
    clutter.distance = classes[roll(dice, 0, LENET5_CLASSES - 1)].distance;
    clutter.r = roll(dice, 2 * PIXEL, 4 * PIXEL);
    clutter.pose = roll_pose(dice, 0);
    clutter.colour = roll_colour(dice, 0, 255);
    return clutter;
}

static struct thing roll_object(struct dice *dice, unsigned label)
{
    struct thing object = {.distance = classes[label].distance};
    object.r = roll(dice, 5 * PIXEL, 12 * PIXEL);
    object.pose = roll_pose(dice, object.r * 25 / 32);
    object.opacity = roll(dice, 180, 256);
    object.colour = vary_colour(dice, classes[label].colour, 80);
    return object;
}

static struct thing roll_obstacle(struct dice *dice)
{
    struct thing obstacle = {.distance = bar, .opacity = 256};
    obstacle.r = roll(dice, 4 * PIXEL, 12 * PIXEL);
    obstacle.pose = roll_pose(dice, 0);
    obstacle.colour = roll_colour(dice, 0, 255);
    return obstacle;
}

void synthetic_draw(bool test_set, uint32_t index, uint8_t *record)
{
    struct dice dice = {.set = test_set, .picture = index};
    struct canvas canvas;
    struct thing thing;
    record[0] = (uint8_t)(index % LENET5_CLASSES);
    paint_background(&canvas, &dice);
    for (int left = roll(&dice, 1, 3); left > 0; left--) {
        thing = roll_clutter(&dice);
        paint(&canvas, &thing);
    }
    thing = roll_object(&dice, record[0]);
    paint(&canvas, &thing);
    for (int left = roll(&dice, 0, 2); left > 0; left--) {
        thing = roll_obstacle(&dice);
        paint(&canvas, &thing);
    }
    write_pixels(&canvas, &dice, record + 1);
}
